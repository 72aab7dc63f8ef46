"""Memory mechanisms: one file each, registered by name; writers and feature maps beside them."""
