"""Archives: their ingredients, how they are built and proved, and the store that holds them."""
