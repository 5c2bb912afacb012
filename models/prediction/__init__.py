"""What a change would do to the learned service graph, before it is deployed."""
