"""What the scripts are made of: plain Python, joined by launcher/render.py below the recipe that imports it."""
