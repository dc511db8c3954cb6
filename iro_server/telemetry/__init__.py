"""What a server tells those who run it: metrics, traces and logs."""
