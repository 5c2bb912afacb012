"""The graph model on the stream: closed windows in, scores of their edges into ClickHouse. Beside the state machine."""
