"""What objectives add to the checks that every run is given, one file for each kind."""
