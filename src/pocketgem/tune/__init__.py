"""Training adapters on this model definition: data, the plan of what is trained, the loop."""
