"""What the user says of the AnnData: columns, labels, doses, and the checks of all of them."""
