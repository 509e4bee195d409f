"""The maths. One definition of each family for inference, training, inspection and diffusion."""
