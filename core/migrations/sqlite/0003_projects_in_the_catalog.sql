-- What the names of a project's repositories begin with. The catalog is in the order of whole names, which is that of these, and not that of
-- the projects' names: `a-b/x` stands before `a/x`. A page of somebody's catalog goes through the projects in this order and skips those that
-- they may not see, whatever these hold.
ALTER TABLE projects ADD COLUMN prefix TEXT NOT NULL GENERATED ALWAYS AS (name || '/') VIRTUAL;
CREATE UNIQUE INDEX projects_by_prefix ON projects (prefix);
