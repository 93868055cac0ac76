"""What runs the optimizer: one process, DDP, or DeepSpeed ZeRO-1, 2, 3, behind one small interface.

Only this folder imports accelerate and deepspeed. An engine shows the trainer

    masters   the float32 tensors that the optimizer of this rank updates: whole weights, or ZeRO's local partitions
    moments   Adam's two moments, tensors like the masters
    gather    tensors like the masters -> whole tensors by parameter name, on every rank
    scatter   the inverse

so that averages, checkpoints and exports are written once and hold for every engine, and a checkpoint holds whole
tensors: it can be resumed at any world size, and by any engine.
"""
