-- Times are microseconds since 1970. Digests are text, `algorithm:hex`. Repository keys are random and never reused.

CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    username TEXT NOT NULL UNIQUE,
    email TEXT UNIQUE,
    realname TEXT NOT NULL,
    comment TEXT NOT NULL,
    password TEXT NOT NULL,
    sysadmin INTEGER NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE TABLE projects (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    owner_id BIGINT REFERENCES users (id) ON DELETE SET NULL,
    public INTEGER NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE TABLE members (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id BIGINT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    UNIQUE (project_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id);

CREATE TABLE repositories (
    key BIGINT PRIMARY KEY NOT NULL,
    project_id BIGINT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    name TEXT NOT NULL UNIQUE,
    created_us BIGINT NOT NULL
);
CREATE INDEX repositories_by_project ON repositories (project_id, name);

CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    repository_key BIGINT NOT NULL REFERENCES repositories (key) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    len_bytes BIGINT NOT NULL,
    artifact_type TEXT,
    subject TEXT,
    annotations TEXT,
    pushed_us BIGINT NOT NULL,
    UNIQUE (repository_key, digest)
);
CREATE INDEX artifacts_by_subject ON artifacts (repository_key, subject, digest) WHERE subject IS NOT NULL;

CREATE TABLE artifact_references (
    artifact_id BIGINT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    repository_key BIGINT NOT NULL,
    digest TEXT NOT NULL,
    kind BIGINT NOT NULL,
    len_bytes BIGINT NOT NULL,
    PRIMARY KEY (artifact_id, digest, kind)
) WITHOUT ROWID;
CREATE INDEX references_by_digest ON artifact_references (repository_key, digest, kind);

CREATE TABLE tags (
    repository_key BIGINT NOT NULL REFERENCES repositories (key) ON DELETE CASCADE,
    name TEXT NOT NULL,
    artifact_id BIGINT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    moved_us BIGINT NOT NULL,
    PRIMARY KEY (repository_key, name)
) WITHOUT ROWID;
CREATE INDEX tags_by_artifact ON tags (artifact_id);

-- Links that the engine may drop, once nothing in the repository names the digest any more.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    repository_key BIGINT NOT NULL,
    digest TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    due_us BIGINT NOT NULL,
    created_us BIGINT NOT NULL
);
CREATE INDEX outbox_by_due ON outbox (due_us);

-- Links that a reconciliation found without anything that names them, of which generation, and when it first did.
CREATE TABLE unclaimed_links (
    repository_key BIGINT NOT NULL,
    digest TEXT NOT NULL,
    generation BIGINT NOT NULL,
    first_seen_us BIGINT NOT NULL,
    PRIMARY KEY (repository_key, digest)
) WITHOUT ROWID;

-- Single facts: which store this catalog belongs to, and how far that had come.
CREATE TABLE facts (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) WITHOUT ROWID;
