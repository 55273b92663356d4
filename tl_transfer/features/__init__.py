"""What two dictionaries (sparse autoencoders) share, and moving features between models."""
