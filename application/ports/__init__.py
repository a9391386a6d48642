"""What the application needs from outside: one module for each kind of adapter."""
