-- What the tests without Citus need of it, in one real PostgreSQL database: functions
-- that record how they were called, and refuse what Citus is documented to refuse.
-- No row is spread.

CREATE TABLE pg_dist_partition (
    logicalrelid regclass PRIMARY KEY,
    partmethod "char" NOT NULL,
    repmodel "char" NOT NULL,
    partcolumn text,
    colocated text
);

CREATE FUNCTION refuse_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'modifying the partition value of rows is not allowed'
        USING ERRCODE = 'feature_not_supported';
END $$;

CREATE FUNCTION create_distributed_table(
    table_name regclass, distribution_column text, colocate_with text DEFAULT 'default'
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_index WHERE indrelid = table_name AND indisunique
        AND NOT EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = table_name
            AND attname = distribution_column AND attnum = ANY (indkey)
        )
    ) THEN
        RAISE EXCEPTION 'cannot create constraint on %', table_name
            USING ERRCODE = 'feature_not_supported';
    END IF;
    INSERT INTO pg_dist_partition
        VALUES (table_name, 'h', 's', distribution_column, colocate_with);
    EXECUTE format(
        'CREATE TRIGGER refuse_key BEFORE UPDATE OF %I ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION refuse_key()',
        distribution_column, table_name
    );
END $$;

CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void
LANGUAGE sql AS $$ INSERT INTO pg_dist_partition VALUES (table_name, 'n', 't') $$;

CREATE FUNCTION citus_add_local_table_to_metadata(table_name regclass) RETURNS void
LANGUAGE sql AS $$ INSERT INTO pg_dist_partition VALUES (table_name, 'n', 's') $$;

-- Refuses the first statement that is planned with it after setval(..., 1, false), as
-- planning itself would; a sequence is not rolled back.
CREATE SEQUENCE refusals START 2;
CREATE FUNCTION refused_once() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF nextval('refusals') = 1 THEN
        RAISE EXCEPTION 'the stand-in was told to refuse this'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    RETURN true;
END $$;
