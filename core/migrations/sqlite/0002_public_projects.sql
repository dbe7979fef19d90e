-- The public projects alone: a mount without a source looks through them, and must not read the others for it.
CREATE INDEX projects_public ON projects (id) WHERE public = 1;
