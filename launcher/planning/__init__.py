"""What a plan decides, one question a module; `planner` asks them in turn."""
