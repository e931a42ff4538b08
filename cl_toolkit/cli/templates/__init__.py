"""What `cl-toolkit new` writes: of each kind one that keeps its laws, under the name `my_idea`."""
