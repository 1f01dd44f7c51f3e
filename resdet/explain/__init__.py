"""What happens inside a detector while it predicts one image: recorded by hooks on its modules, shown as a page of pictures."""
