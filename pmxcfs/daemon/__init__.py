"""The parts joined to one running node: order of start and stop, status report, test control."""
