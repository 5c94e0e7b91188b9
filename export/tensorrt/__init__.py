"""Files for TensorRT: a bounded NMS, rewriting and checking of graphs, and the engine."""
