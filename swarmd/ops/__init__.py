"""What anyone may do, in any dialect: one module per noun, plain functions over the cluster."""
