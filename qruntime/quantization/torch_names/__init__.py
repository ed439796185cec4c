"""torch's vocabulary: observers, QConfig, qconfig_spec; translated at the door into what the rest of the package knows."""
