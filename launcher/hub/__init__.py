"""The Hugging Face Hub as a library: one client, one boundary that turns every odd answer into an error."""
