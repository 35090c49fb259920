"""Train several depths of one model in each step, the shallow ones on the predictions of the whole model too."""
