"""Quality back after a cut: a linear map in place of the removed layers, and a short training of what stays."""
