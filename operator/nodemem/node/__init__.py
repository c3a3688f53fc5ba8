"""What the kernel's numbers mean on a Kubernetes node; no API calls."""
