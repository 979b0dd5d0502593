"""Past one process: the same app as a deployment of an existing engine. Nothing imports this room but `main`."""
