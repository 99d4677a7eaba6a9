"""The only room that knows FUSE: options, binding, loop, operations, notifier, mount."""
