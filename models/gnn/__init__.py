"""GraphSAGE over closed windows: self-supervised training with torch, inference with numpy alone."""
