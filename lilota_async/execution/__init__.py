"""Running task functions: in processes, in threads and on the loop; never sees a database."""
