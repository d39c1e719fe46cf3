"""What is measured from files to training samples: slices, masks, annotations and volumes."""
