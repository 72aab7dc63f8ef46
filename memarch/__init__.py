"""The public face: what `import memarch` gives, and the command line."""
