"""What is wrong with annotations, volumes, data sets of volumes, and between splits."""
