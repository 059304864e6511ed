"""Workers: they take messages from the layer and run the consumers and views that answer them."""
