"""Depth of images, folders and videos with a trained net."""
