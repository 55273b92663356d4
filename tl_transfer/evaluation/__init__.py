"""Whether a transfer worked: arms, effect, damage, intervals, selection."""
