"""Maps from one activation space to another, their controls and their score card."""
