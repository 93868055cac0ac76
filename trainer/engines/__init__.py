"""Engines run the optimizer: one process, DDP, or DeepSpeed ZeRO-1, 2, 3, behind one small interface.

Only this folder imports accelerate and deepspeed. An engine gives the trainer

    masters   the float32 tensors that the optimizer of this rank updates: whole weights, or ZeRO's local partitions
    moments   Adam's two moments, tensors like the masters
    gather    tensors like the masters -> whole tensors by parameter name, on every rank
    scatter   the inverse

The code of averages, checkpoints and exports uses these only, so it is the same for every engine. A checkpoint holds
whole tensors, so training can be resumed at any world size and by any engine.
"""
