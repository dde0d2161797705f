"""Who notices: metrics, health, logs."""
