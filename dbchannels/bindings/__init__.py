"""Live models: bindings send changes of a model's rows to groups."""
