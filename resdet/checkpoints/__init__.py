"""Everybody's checkpoints: file -> tensors (`files`), tensors -> our names (`names`), -> a model (`recognise`)."""
