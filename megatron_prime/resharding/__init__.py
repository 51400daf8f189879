"""Moving weights from the training layout to the engine layout."""
