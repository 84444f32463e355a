"""Pure bookkeeping of KV memory: slabs, block pools, the prefix index and its events. No tensors."""
