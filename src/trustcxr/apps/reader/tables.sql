CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (number INTEGER PRIMARY KEY, sample TEXT NOT NULL UNIQUE, grouped TEXT NOT NULL,
                    picture BLOB NOT NULL, mask BLOB NOT NULL);
CREATE TABLE maps (image INTEGER NOT NULL REFERENCES images, arm INTEGER NOT NULL, picture BLOB NOT NULL,
                   PRIMARY KEY (image, arm));
CREATE TABLE readers (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE);
CREATE TABLE marks (reader INTEGER NOT NULL REFERENCES readers, image INTEGER NOT NULL REFERENCES images,
                    regions TEXT NOT NULL, saved TEXT NOT NULL, PRIMARY KEY (reader, image));
CREATE TABLE judgements (reader INTEGER NOT NULL REFERENCES readers, image INTEGER NOT NULL REFERENCES images,
                         arm INTEGER NOT NULL, ranked INTEGER, rating INTEGER, saved TEXT NOT NULL,
                         PRIMARY KEY (reader, image, arm));
