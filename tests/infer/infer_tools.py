"""A file of inputs."""

LINES = [f"text number {i} {'and so on ' * (i % 7)}".strip() for i in range(50)]
