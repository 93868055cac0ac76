"""One run: its steps, leases, recipes, and the loop over them. It knows no command."""
