"""Sources of images and the pipeline that turns them into batches."""
