"""Hard targets: what every genome of a search must hold."""
