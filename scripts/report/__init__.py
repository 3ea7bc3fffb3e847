"""What every measurement prints."""
