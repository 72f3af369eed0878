"""From what was asked to what will be done: every decision with its reason; asks no service."""
