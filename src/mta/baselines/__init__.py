"""Controls and rivals, all with the one method signature."""
