"""Creates, connects, starts and stops all parts; has the status report and test control."""
